"""The run manifest: what all peers of a run must agree on.

People write it as ``run.toml`` or name a preset (presets.py); the founder signs its canonical bytes; its
SHA-256 digest is part of the join string, so a newcomer can check what it was given. It never
changes during a run. What rules there are between its fields, manifest_reader.py says.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from understudy.protocol.ids import DRIVER_STAGE, PEER_ID_CHARS_MAX, STAGES_MAX, STEPS_MAX

PROTOCOL_VERSION = 5

UPDATES_MAX = 10**7
"""For what is counted in updates: longer than any run."""
Updates = Annotated[int, Meta(ge=0, le=UPDATES_MAX)]
Word = Annotated[str, Meta(max_length=128, pattern=r"^[A-Za-z0-9._-]*\Z")]
HubName = Annotated[str, Meta(max_length=1024)]
ShortText = Annotated[str, Meta(max_length=256)]
Digest = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
"""Hex SHA-256, or empty: there is none."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the manifest. Unknown keys are errors: a typo must not become a default."""


class ModelSettings(_Section, frozen=True):
    """LLaMA dimensions. S1..Sn each hold ``layers_per_stage`` of the decoder blocks."""

    vocabulary_size: Annotated[int, Meta(ge=256, le=1 << 20)] = 256
    hidden_size: Annotated[int, Meta(ge=8, le=1 << 16)] = 128
    intermediate_size: Annotated[int, Meta(ge=8, le=1 << 18)] = 352
    attention_heads: Annotated[int, Meta(ge=1, le=1024)] = 4
    block_stages: Annotated[int, Meta(ge=1, le=STAGES_MAX - 1)] = 4
    layers_per_stage: Annotated[int, Meta(ge=1, le=1024)] = 1
    context_length: Annotated[int, Meta(ge=2, le=1 << 20)] = 128
    rope_theta: Annotated[float, Meta(ge=1, le=1e12)] = 10000.0
    norm_epsilon: Annotated[float, Meta(ge=1e-12, le=0.1)] = 1e-5

    def stage_bytes(self, stage: int) -> int:
        """Bytes of a stage's weights in float32."""
        hidden, intermediate = self.hidden_size, self.intermediate_size
        if stage == DRIVER_STAGE:
            return 4 * (2 * self.vocabulary_size * hidden + hidden)
        return 4 * self.layers_per_stage * (4 * hidden * hidden + 3 * hidden * intermediate + 2 * hidden)


class DataSettings(_Section, frozen=True):
    """Where the driver's tokens come from. Only the peer on S0 reads data.

    No setting names a file of a machine: a manifest is read by many, and a founder must not choose what a volunteer's
    machine opens. A run.toml may name the founder's own files (run_toml.py).
    """

    source: Literal["python-stdlib", "text", "huggingface"] = "python-stdlib"
    """text: files that whoever may drive has. They are the run's if they have its digest."""
    dataset: HubName = ""
    """huggingface: a dataset of the hub. Empty: a folder of files that whoever may drive has."""
    config: ShortText = ""
    split: ShortText = "train"
    column: ShortText = "text"
    revision: ShortText = ""
    """The full commit hash of a hub's dataset; a name such as "main" may mean other text tomorrow."""
    tokenizer: HubName = ""
    """huggingface: a model of the hub. Empty: a tokenizer.json that whoever needs it has."""
    tokenizer_revision: ShortText = ""
    end_of_text: ShortText = ""
    """huggingface: the token that ends each text, such as "<|endoftext|>"."""
    validation_split: ShortText = ""
    """huggingface: held out instead of a fraction of the texts."""
    validation_fraction: Annotated[float, Meta(ge=0, lt=1)] = 0.05
    digest: Digest = ""
    """Of the founder's text; only who has the same text can drive. Entered at founding."""
    tokenizer_digest: Digest = ""
    """huggingface: the SHA-256 of the founder's tokenizer.json. Entered at founding."""

    @property
    def hub_names(self) -> tuple[str, ...]:
        """What is fetched from the Hugging Face hub, for people."""
        named = (("the dataset", self.dataset), ("the tokenizer", self.tokenizer))
        return tuple(f"{kind} {name}" for kind, name in named if name)


class OptimizerSettings(_Section, frozen=True):
    """AdamW with linear warm-up to a constant rate; each stage clips its own gradient."""

    learning_rate: Annotated[float, Meta(gt=0, le=10)] = 3e-3
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Meta(gt=0, le=1)] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0, le=10)] = 0.0
    warmup_steps: Updates = 10
    clip_norm: Annotated[float, Meta(gt=0, le=1e6)] = 1.0


class RecoverySettings(_Section, frozen=True):
    """How a lost stage is rebuilt (CheckFree, arXiv 2506.15461, Algorithm 1)."""

    method: Literal["checkfree", "checkfree+"] = "checkfree"
    swapped_pairs: Literal["mirror", "average"] = "average"
    """How S2 and Sn-1 come back under checkfree+: as a copy of their swapped partner, or averaged."""
    norm_exponent: Annotated[int, Meta(ge=0, le=2)] = 2
    learning_rate_scale: Annotated[float, Meta(gt=0, le=100)] = 1.1
    learning_rate_decay_steps: Updates = 0
    """Updates in which a recovered stage's scaled rate goes back to the run's; 0: it stays, as in the paper."""
    standby_every: Updates = 20
    """Commits from one standby copy of a block stage to the next; 0: none, and CheckFree rebuilds what is lost."""
    standby_copies: Annotated[int, Meta(ge=1, le=2)] = 1
    """Holders of each block stage: a spare if one waits, and the block stage two hops away."""
    standby_age_max: Updates = 200
    """A copy that so many commits were made since is not used any more."""
    edge_copy_every: Updates = 1
    """Commits from one copy of S0's weights to the next; 0 means none, and a lost S0 begins anew."""
    edge_keepers: Annotated[int, Meta(ge=1, le=3)] = 2
    """Stages that keep each part of S0: with 1 S0 can be lost, with 2 a neighbour with it, with 3 both neighbours."""
    without_majority_after_s: Annotated[float, Meta(ge=0, le=1e6)] = 300.0
    """A side of a split without the owners of most stages rebuilds what it lacks after so long; 0: never."""


WINDOW_PER_STAGE_MAX = 8
"""So many microbatches are in flight for each stage at most where S0 chooses: every stage keeps them in memory."""


class StepSettings(_Section, frozen=True):
    """What one optimizer step of the whole model consists of."""

    microbatches: Annotated[int, Meta(ge=1, le=1 << 16)] = 4
    microbatch_size: Annotated[int, Meta(ge=1, le=1 << 16)] = 8
    window: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    """Microbatches in flight at most; 0 means that the driver finds it (protocol/pipeline/window.py)."""
    total_steps: Annotated[int, Meta(ge=0, le=STEPS_MAX)] = 0
    """The run is done after this many committed steps; 0 means it goes on until stopped."""
    microbatch_timeout_s: Annotated[float, Meta(ge=0.1, le=86400)] = 20.0
    """A microbatch not back after this long is re-issued; with twice the time, and with every second one more."""


WireDtype = Literal["float32", "bfloat16", "int8"]


class WireSettings(_Section, frozen=True):
    """How activations and gradients travel between stages."""

    dtype: WireDtype = "bfloat16"
    """int8: with a scale for each block of 32 channels of a token's hidden vector (node/compute/quantisation.py)."""


class ComputeSettings(_Section, frozen=True):
    """How stages compute."""

    dtype: Literal["auto", "float32"] = "auto"
    """auto: each peer in bfloat16 where its machine is faster for it (node/compute/precision.py), else in float32."""


class TimingSettings(_Section, frozen=True):
    """Liveness and records, in seconds. Below the lower bounds a node would do nothing else any more."""

    heartbeat_s: Annotated[float, Meta(ge=0.05, le=60)] = 1.0
    suspect_after_s: Annotated[float, Meta(ge=0.1, le=600)] = 2.0
    dead_after_s: Annotated[float, Meta(ge=0.2, le=3600)] = 4.0
    record_lifetime_s: Annotated[float, Meta(ge=2, le=3600)] = 15.0
    record_refresh_s: Annotated[float, Meta(ge=0.5, le=1800)] = 5.0


class InitialSettings(_Section, frozen=True):
    """Weights of an earlier run that this one begins with. Entered at founding, served by the founder's seed."""

    digests: tuple[Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")], ...] = ()
    """Of each stage's weights, S0 first (`WeightsSnapshot.digest`). None: the stages are drawn from the seed."""
    peer: Annotated[str, Meta(max_length=PEER_ID_CHARS_MAX, pattern=r"^[A-Za-z0-9]*\Z")] = ""
    """Who serves them: the founder."""
    run_id: Word = ""
    step: Annotated[int, Meta(ge=0, le=STEPS_MAX)] = 0
    """Where they come from, for people."""


class RunManifest(_Section, frozen=True):
    """Everything the peers of one run agree on."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+\Z")]
    seed: Annotated[int, Meta(ge=0, lt=2**62)] = 0
    protocol_version: Annotated[int, Meta(ge=0, le=1 << 31)] = PROTOCOL_VERSION
    admission: Literal["invited", "open"] = "invited"
    """Who may take part: who holds an invite of the founder's (protocol/admission), or whoever finds the run."""
    founding_nonce: Word = ""
    """Set at founding so that two runs of one preset are two runs."""
    model: ModelSettings = msgspec.field(default_factory=ModelSettings)
    data: DataSettings = msgspec.field(default_factory=DataSettings)
    optimizer: OptimizerSettings = msgspec.field(default_factory=OptimizerSettings)
    recovery: RecoverySettings = msgspec.field(default_factory=RecoverySettings)
    step: StepSettings = msgspec.field(default_factory=StepSettings)
    wire: WireSettings = msgspec.field(default_factory=WireSettings)
    compute: ComputeSettings = msgspec.field(default_factory=ComputeSettings)
    timing: TimingSettings = msgspec.field(default_factory=TimingSettings)
    initial: InitialSettings = msgspec.field(default_factory=InitialSettings)

    @property
    def stage_count(self) -> int:
        """All stages: S0 and the block stages."""
        return self.model.block_stages + 1

    @property
    def last_stage(self) -> int:
        return self.model.block_stages

    @property
    def window(self) -> int:
        """Microbatches in flight at most: what was set, or eight times the stages, but no more than there are.

        Twice is enough where links are short; on long ones microbatches travel (protocol/pipeline/window.py).
        """
        wanted = self.step.window or WINDOW_PER_STAGE_MAX * self.stage_count
        return min(wanted, self.step.microbatches)

    @property
    def tokens_per_step(self) -> int:
        return self.step.microbatches * self.step.microbatch_size * self.model.context_length

    def encode(self) -> bytes:
        """Canonical bytes: sorted keys, every field present. The digest and signature cover these."""
        return msgspec.json.encode(msgspec.to_builtins(self), order="sorted")

    def digest(self) -> str:
        """Hex SHA-256 of the canonical bytes."""
        return hashlib.sha256(self.encode()).hexdigest()

    def run_id(self) -> str:
        """The name and the beginning of the digest: the prefix of all DHT keys of the run."""
        return f"{self.name}-{self.digest()[:12]}"
