"""Forward KL over a large vocabulary: in chunks against the whole logits, memory and time.

    python benchmarks/chunked_kl.py

Each measurement is a process of its own with one thread; times alternate between the two forms, so only their
ratio is meant to carry over.
"""

import resource
import statistics
import subprocess
import sys
import time

WIDTH, VOCABULARY = 576, 49152
FORMS = ("whole", "chunked")


def measure(form: str, positions: int) -> None:
    """Print the seconds, and the mebibytes of memory, that one loss with its gradients takes."""
    import torch

    from undo_probe import losses

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    states, wanted = (torch.randn(positions, WIDTH, generator=draw) for _ in range(2))
    weight, teacher = (torch.randn(WIDTH, VOCABULARY, generator=draw) / WIDTH**0.5 for _ in range(2))
    bias, teacher_bias = torch.zeros(VOCABULARY), torch.zeros(VOCABULARY)
    for tensor in (states, weight, bias):
        tensor.requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.process_time()
    if form == "whole":
        with torch.no_grad():
            target = wanted @ teacher + teacher_bias
        loss = losses.forward_kl(states @ weight + bias, target)
    else:
        loss = losses.chunked_forward_kl(states, (weight, bias), wanted, (teacher, teacher_bias))
    loss.backward()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss
    print(time.process_time() - begun, grown / 1024, float(loss.detach()))


def main() -> None:
    """Compare the two forms at two sizes."""
    for positions in (512, 2048):
        found: dict[str, list[list[float]]] = {form: [] for form in FORMS}
        for _ in range(3):
            for form in FORMS:
                words = [sys.executable, __file__, form, str(positions)]
                said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
                found[form].append([float(number) for number in said])
        median = {f: [statistics.median(column) for column in zip(*found[f], strict=True)] for f in FORMS}
        time_ratio, memory_ratio = (median["chunked"][at] / median["whole"][at] for at in (0, 1))
        print(
            f"{positions} positions: time {time_ratio:.2f}, peak memory {memory_ratio:.2f} of the whole form's "
            f"{median['whole'][1]:.0f} MiB; loss {median['chunked'][2]:.6f} and {median['whole'][2]:.6f}"
        )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        main()
