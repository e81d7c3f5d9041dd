"""The published experiments of UNDO (arXiv 2506.06278) as configurations; what differs is said beside the value.

*Code* is the released code, *paper* is what summaries of the paper say, where the two differ. A batch of arithmetic is
counted in tokens: theirs are rows of 256 packed tokens, ours are single questions of :data:`ROW` tokens, as many as
fill it.
"""

from undo_probe.config import (
    ArmsConfig,
    AttackConfig,
    DistillConfig,
    GradDiffConfig,
    MaxEntConfig,
    ModelConfig,
    NoiseConfig,
    OriginalConfig,
    RepNoiseConfig,
    RMUConfig,
    RunConfig,
    SAMConfig,
    UnlearnConfig,
)
from undo_probe.task_config import ArithmeticConfig, ChoiceConfig, LanguageConfig, QuestionSource, TextSource

ROW = 23


def _rows(packed: int) -> int:
    """How many rows hold the tokens of ``packed`` rows of 256."""
    return packed * 256 // ROW


# code: the 0.3B shape (14 layers, d_model 768); paper: said to be 100M. 8 heads of 128 with 4 key-value heads there,
# 8 of 96 here, which has as many parameters; the gated MLP of width 3072 has three matrices, this one two of 4608.
# 132M parameters in the blocks either way. Theirs has 197M more in the embedding of Gemma's 256k tokens.
_MODEL = ModelConfig(n_layers=14, d_model=768, n_heads=8, d_mlp=4608, normalization="RMS")
_UNLEARN = UnlearnConfig(
    method="maxent",
    also=("graddiff", "rmu", "sam", "repnoise"),
    # code: weights and Adam in bf16, which loses small updates; float32 here
    maxent=MaxEntConfig(steps=10, batch_size=_rows(40), learning_rate=9e-5, retain_weight=1.0),
    graddiff=GradDiffConfig(
        steps=10, batch_size=_rows(20), accumulate=2, learning_rate=8e-6, retain_weight=15.0
    ),
    rmu=RMUConfig(
        steps=500,
        batch_size=_rows(40),
        learning_rate=8e-6,  # code: 8e-6 for the teacher, 6e-6 in the list that is attacked
        layer=10,  # their hidden state 11 is the output of block 10, counted from 0
        c=6.0,
        # paper: the preserve term is active; code: 200 is set, but the term is switched off. 0 is their run
        retain_weight=200.0,
        target="gaussian",
        # code: of blocks 5 to 11, and the last of these gets no gradient; here of blocks 0 to 10
        tensors=("mlp.W_out",),
    ),
    # code: around RMU in the arithmetic lists, around MaxEnt elsewhere; here around MaxEnt
    sam=SAMConfig(steps=10, batch_size=_rows(40), learning_rate=9e-5, retain_weight=1.0, sharpness=0.01),
    # code: (alpha, beta) from (0.1, 0.001) to (4, 4); one of the eight pairs. Its length is not known: MaxEnt's here
    repnoise=RepNoiseConfig(
        steps=10,
        batch_size=_rows(40),
        learning_rate=8e-5,
        retain_weight=1.0,
        ascent_weight=1.0,
        noise_weight=0.1,
    ),
)
_DISTILL = DistillConfig(
    steps=1000,
    batch_size=_rows(15),
    accumulate=24,
    learning_rate=7e-4,
    final_fraction=0.1,  # 7e-4 to 7e-5
    warmup=50,
    weight_decay=0.0,
    # over the means of sums and differences, equations and word problems. Both:
    tolerance=0.05,  # absolute, of the mean accuracy; the authors' comment says 95 % of the teacher's
    eval_every=20,
)
PAPER_ARITHMETIC = RunConfig(
    name="paper-arithmetic",
    # code: seeds 111, 222, 333, 444 and 555 for the students, 42 for all else; paper: five seeds
    seed=111,
    device="auto",
    precision="no",  # code: float32, but bf16 weights in MaxEnt and in the attack
    # both: as many word problems as equations. Theirs ends in a tail after the number, and a quotient of an equation is
    # written 6.0; here an answer ends where it is known. 0.75 of their tokens are English text in pretraining and
    # distillation: give yours with task.background=FOLDER. It counts as retain text, also where theirs has none
    # (unlearning). Their loss is over all tokens of a row, ours over the answers, and all tokens of text
    task=ArithmeticConfig(word_problems=0.5),
    model=_MODEL,
    original=OriginalConfig(
        steps=1000,
        batch_size=_rows(15),
        accumulate=24,
        learning_rate=4e-4,
        schedule="constant",  # code: called cosine, with an end equal to the peak
        warmup=50,
        weight_decay=0.0,
        eval_every=50,
    ),
    unlearn=_UNLEARN,
    # code: 0.1 to 0.8; the paper's figures show 0.55 to 0.75 and it recommends 0.6. The gain of a norm goes to one in
    # either: Gemma stores what it adds to one
    noise=NoiseConfig(alphas=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), beta=0.1),
    distill=_DISTILL,
    attack=AttackConfig(
        # code: ten; the authors' comment says nine. Our grid may grow at its edges (attack.max_extensions)
        learning_rates=(1e-6, 4e-6, 7e-6, 1e-5, 5e-5, 7e-5, 1e-4, 4e-4, 7e-4, 1e-3),
        seeds=1,
        steps=500,
        batch_size=_rows(15),
        eval_steps=tuple(range(0, 501, 5)),
        # code: English with all four operations ("all data"), and forget-only, which by mistake shows addition and
        # subtraction; here T alone first, and T with retain as `mixed`
        also=("mixed",),
    ),
    # oracle matching: 1000 steps at the rate of distillation in both
    arms=ArmsConfig(twins=(0.6,), rates_alpha=0.6, oracle_matching=1000),
)

# the language experiment of UNDO (arXiv 2506.06278): 0.1B parameters, for a GPU
PAPER_LANGUAGE = RunConfig(
    name="paper-language",
    seed=42,  # the code's only seed; the paper is said to have five
    device="cuda",
    # code: distillation in float32, MaxEnt and the attack in pure bf16, which loses small updates
    precision="no",
    task=LanguageConfig(
        retain=TextSource(language="English", dataset="HuggingFaceFW/fineweb-edu", subset="sample-10BT"),
        forget=TextSource(language="Korean", dataset="HuggingFaceFW/fineweb-2", subset="kor_Hang"),
        # paper: Gemma-2's 256k tokens, tied, 82M numbers. Here 128k of its own, untied: as many
        vocab=128_000,
        tokenizer_characters=500_000_000,
        # code: documents above 2048 tokens are dropped; here they are cut into rows
        n_ctx=2048,
        min_characters=200,
        near_duplicates=None,  # both sets are deduplicated already
        max_tokens=1_000_000_000,
        # code: 500k validation tokens a language, all others are trained on and attacked with
        forget_shares=(0.9985, 0.0005, 0.0005, 0.0005),
        retain_held_out=0.0005,
        eval_rows=244,
    ),
    # paper: Gemma-2 shapes with d_head 128, 4 key heads, gated MLP, soft caps; here d_head is d_model / n_heads
    model=ModelConfig(n_layers=14, d_model=320, n_heads=8, d_mlp=1280, normalization="RMS"),
    # one epoch of 2B tokens in steps of 5 x 80 rows a GPU; how many GPUs is not said
    original=OriginalConfig(
        steps=2441,
        batch_size=5,
        accumulate=80,
        learning_rate=4e-4,
        warmup=50,
        final_fraction=0.1,
        weight_decay=0.1,
        eval_every=50,
    ),
    unlearn=UnlearnConfig(
        also=("graddiff", "rmu"),
        # rates were chosen out of 1e-5 .. 8e-5. Labelled: 819k tokens, .041 % of 2B; the paper's .01 % is arithmetic's
        maxent=MaxEntConfig(steps=100, batch_size=4, learning_rate=3e-5, retain_weight=1.0, eval_every=10),
        graddiff=GradDiffConfig(
            steps=100, batch_size=4, learning_rate=6e-5, retain_weight=1.0, eval_every=10
        ),
        rmu=RMUConfig(
            steps=500,
            batch_size=4,
            learning_rate=3e-5,
            layer=10,  # `end_layer` 11 counts the embedding: the output of block 10, counted from 0
            c=6.5,
            # code: 1200 is written down, but the retain term is switched off; the paper describes it as on
            retain_weight=1200.0,
            target="gaussian",
            # code: blocks 5 to 11 (11 gets no gradient); here every block up to `layer`
            tensors=("mlp.W_out",),
            eval_every=50,
        ),
    ),
    # figures: these; code: .1, .3, .5, .7 with beta .1, .05, .01. Recommended: alpha .6, beta .1
    noise=NoiseConfig(alphas=(0.2, 0.4, 0.6, 0.8), beta=0.1),
    distill=DistillConfig(
        # 4 x 60 rows on each of 4 GPUs; one epoch at most
        steps=1017,
        batch_size=4,
        accumulate=240,
        learning_rate=9e-4,
        warmup=50,
        final_fraction=7 / 9,  # cosine to 7e-4
        weight_decay=0.0,  # code: .1 where the student is fresh
        tolerance=0.05,
        eval_every=50,
    ),
    attack=AttackConfig(
        # ten rates in the code, nine in the authors' words; all in pure bf16 there, in float32 here
        learning_rates=(1e-6, 4e-6, 7e-6, 1e-5, 5e-5, 7e-5, 1e-4, 4e-4, 7e-4, 1e-3),
        steps=500,
        batch_size=8,
        eval_steps=tuple(range(0, 501, 5)),
        max_extensions=0,
    ),
    arms=ArmsConfig(twins=(0.6,), rates_alpha=0.6),
)


def _kept(share: float) -> float:
    """The retain weight beside a forget term of weight 1, for a mixture (1 - share) forget + share retain."""
    return share / (1 - share)


# WMDP (arXiv 2506.06278): Gemma-2-2B as released, biology; for cybersecurity give task.forget, task.forget_text and
# unlearn.rmu their values. A row has 1024 tokens everywhere: where theirs are shorter, fewer rows have as many tokens.
# Their unlearning and attacks also train on questions and answers that a hosted model wrote from the corpora and that
# were not released; here it is the corpora alone
PAPER_WMDP = RunConfig(
    name="paper-wmdp",
    seed=42,  # both: 42 to 45, a run each
    device="auto",
    precision="no",  # code: pure bf16 in every stage, which loses small updates; float32 here
    task=ChoiceConfig(
        # 1273 questions, none of which is trained on. Their figure is over all of them; here over V. The attack chooses
        # its rate on one half of V and is read on the other
        forget=QuestionSource(
            name="WMDP-Bio",
            dataset="cais/wmdp",
            subset="wmdp-bio",
            header="The following are multiple choice questions (with answers) about biology.",
        ),
        # both: 5-shot on 40 % (7 % in the code's quick mode). Questions that do not fit a row with their shots are left
        # out
        retain=QuestionSource(
            name="MMLU",
            dataset="cais/mmlu",
            subset="all",
            shots=5,
            shots_split="dev",
            header="The following are multiple choice questions (with answers) about {subject}.",
        ),
        # the corpus is gated: ask for it, and give yours with task.text=FOLDER where it is not reachable
        forget_text=TextSource(
            language="WMDP bio forget", dataset="cais/wmdp-corpora", subset="bio-forget-corpus"
        ),
        # code: 0.5 questions written from the domain's retain corpus, 0.5 wikitext-2 (tokenised, with <unk>); here
        # wikitext in its raw form alone
        retain_text=TextSource(
            language="wikitext", dataset="Salesforce/wikitext", subset="wikitext-2-raw-v1", split="train"
        ),
        # code: web-edu .35, Wikipedia .35, seven Magpie instruction sets .29, questions on Wikipedia .01. Here web-edu
        # alone
        distill_text=TextSource(language="web", dataset="HuggingFaceFW/fineweb-edu", subset="sample-10BT"),
        n_ctx=1024,
        permute=False,  # both: the harness asks them in their published order
        near_duplicates=None,
        max_text_tokens=340_000_000,  # what distillation reads: 3000 x 110 x 1024
        forget_shares=(0.05, 0.85, 0.05, 0.05),
        retain_shares=(0.55, 0.05, 0.4),
    ),
    original=OriginalConfig(source="google/gemma-2-2b"),
    unlearn=UnlearnConfig(
        method="rmu",
        also=("maxent", "sam"),
        rmu=RMUConfig(
            steps=90,
            batch_size=1,  # code: 4 x 10 rows of 256 tokens, and so below
            accumulate=10,
            learning_rate=5e-5,  # code: 5e-5 biology, 2e-5 or 5e-5 cybersecurity; 1e-4 in the lists
            layer=14,  # their hidden state 15 counts the embedding: the output of block 14, counted from 0
            # code: blocks 10 to 15, of which 15 lies behind the states and gets no gradient
            blocks=(10, 11, 12, 13, 14),
            c=80.0,
            retain_weight=_kept(0.5),  # code: .5, .2 and .1
            target="gaussian",
            tensors=("mlp.W_out",),
            eval_every=90,
        ),
        maxent=MaxEntConfig(
            steps=90,
            batch_size=1,
            accumulate=10,
            learning_rate=2e-5,  # code: 3.5e-5 and 5e-5 too
            retain_weight=_kept(0.25),  # code: .2 to .3
            retain_loss="kl",  # code: from the frozen original, switched on
            eval_every=90,
        ),
        # code: lists .01; accumulation keeps only the last micro-batch's gradient there, here all ten
        sam=SAMConfig(
            steps=90,
            batch_size=1,
            accumulate=10,
            learning_rate=2e-5,
            retain_weight=_kept(0.3),  # code: .3 to .5
            retain_loss="kl",
            sharpness=0.01,
            eval_every=90,
        ),
    ),
    # both: shrinking alone. The gain of a norm goes to one, as Gemma's own does
    noise=NoiseConfig(alphas=(0.25,), beta=0.0),
    distill=DistillConfig(
        steps=3000,
        batch_size=1,  # code: 10 x 11 rows of 1024 tokens; one at a time here, for the logits of ten are 10 GB
        accumulate=110,
        learning_rate=2e-5,  # code: 1e-5 or 2e-5
        final_fraction=0.1,
        warmup=50,
        weight_decay=0.0,
        stop="never",  # code: MMLU within .03 of the teacher's is written, but the rule that is passed is always false
        tolerance=0.03,
        eval_every=500,
    ),
    attack=AttackConfig(
        # code: these three; others for attacks on longer questions, which by mistake equal the short ones
        learning_rates=(4.62e-6, 1e-5, 2.15e-5),
        seeds=1,  # both: one a run, 42 to 45
        steps=500,
        batch_size=5,  # code: 20 rows of 256
        eval_steps=(0, 10, 25, 50, 150, 500),
        max_extensions=0,
        # code: six mixtures a domain, of which forget and retain corpus half and half is `mixed`
        also=("mixed",),
    ),
    # there is no oracle: nobody has Gemma's own data without biology
    arms=ArmsConfig(twins=(0.25,), unlearn_and_distill=False, rates_alpha=0.25),
)
