"""Published experiments as configurations; where a paper and its released code differ, it is said beside the value."""

from undo_probe.config import (
    ArmsConfig,
    AttackConfig,
    DistillConfig,
    FitConfig,
    GradDiffConfig,
    LanguageConfig,
    MaxEntConfig,
    ModelConfig,
    NoiseConfig,
    RMUConfig,
    RunConfig,
    TextSource,
    UnlearnConfig,
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
    original=FitConfig(
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
