"""What a variant or an implementation claims, typed.

A promise is two-sided: what is promised is tested by the conformance suite, what is not promised
must be refused by name. `attnkit.problem` matches promises against a call.
"""

from typing import Literal, get_args

from pydantic import Field

from attnkit.frozen import Frozen

Relation = Literal["exact", "approximate", "different"]
MaskPart = Literal["window", "padding", "documents", "prefix", "dense", "blocks", "union"]
Decay = Literal["none", "head", "channel"]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]
Device = Literal["cpu", "cuda"]
Transform = Literal["grad", "vmap", "jvp"]

ALL_DTYPES: tuple[Dtype, ...] = get_args(Dtype)
ALL_MASK_PARTS: tuple[MaskPart, ...] = get_args(MaskPart)
ALL_TRANSFORMS: tuple[Transform, ...] = get_args(Transform)


class SpeedClaim(Frozen):
    """That a call takes at most so many times as long as another way to compute the same."""

    vs: str = Field(
        pattern=r"^(sdpa|\w+\.\w+)$",
        description="torch's 'sdpa', or another implementation as 'variant.implementation'",
    )
    max_ratio: float = Field(gt=0, description="largest ratio of run times, dimensionless")
    length: int = Field(gt=0, description="L and S")
    batch: int = Field(default=1, gt=0, description="B")
    heads: int = Field(default=1, gt=0, description="H, and Hkv or G too")
    head_dim: int = Field(default=64, gt=0, description="E and Ev")
    causal: bool = Field(default=True, description="hides later keys")
    window: int | None = Field(default=None, gt=0, description="keys a query sees, self included")
    dtype: Dtype = Field(default="float32", description="of the inputs")
    device: Device = Field(default="cpu", description="where it is claimed")
    capability: str = Field(
        default="", description="of the processor it is claimed for: AVX512, sm_90; empty for any"
    )

    def __str__(self) -> str:
        """Name it, without its limit: no two claims of one subject may share a name."""
        sizes = f"B{self.batch}-H{self.heads}-L{self.length}-E{self.head_dim}"
        parts = [
            self.vs,
            sizes,
            "causal" if self.causal else "full",
            f"window{self.window}" if self.window else "",
            self.device if self.device != "cpu" else "",
            self.capability,
        ]
        return "-".join(filter(None, parts))


class CommonPromises(Frozen):
    """What variants of every family may claim.

    Every field defaults to the smallest claim, so that a promise is always written out.
    """

    # who may look at what
    causal: bool = Field(default=False, description="can hide later keys, lower-right aligned")
    bidirectional: bool = Field(default=False, description="can leave later keys visible")
    masks: tuple[MaskPart, ...] = Field(default=(), description="mask parts that are honoured")
    needs: tuple[MaskPart, ...] = Field(
        default=(), description="mask parts without which it refuses"
    )
    # time
    state: bool = Field(
        default=False, description="any split into chunks and steps equals the whole"
    )
    reorder: bool = Field(default=False, description="a state can be reordered over the batch")
    truncate: bool = Field(default=False, description="a state can be cut back to fewer tokens")
    # numerics
    gradients: bool = Field(default=False, description="every floating input gets its gradient")
    dropout: bool = Field(default=False, description="drops probabilities in training")
    dtypes: tuple[Dtype, ...] = Field(default=(), description="dtypes of the inputs")
    devices: tuple[Device, ...] = Field(default=(), description="device types")
    deterministic: bool = Field(default=False, description="the same call gives the same bits")
    compile: bool = Field(default=False, description="traces under torch.compile(fullgraph=True)")
    transforms: tuple[Transform, ...] = Field(
        default=(), description="function transforms of torch.func that it runs under"
    )
    stops_nan: bool = Field(default=False, description="NaN and inf at masked places stay there")
    memory: Literal["L", "L*S"] = Field(default="L*S", description="growth of extra memory")
    time: Literal["L", "L*w", "L*S"] = Field(default="L*S", description="growth of run time")
    speed: tuple[SpeedClaim, ...] = Field(
        default=(), description="run times of forward calls, measured against others"
    )


class HeadPromises(CommonPromises):
    """What variants with query, key and value heads may claim besides."""

    heads: Literal["one", "many"] = Field(default="many", description="how many query heads")
    gqa: bool = Field(
        default=False, description="fewer key/value heads (softmax), groups (recurrence)"
    )
    value_width: bool = Field(default=False, description="value width Ev may differ from E")
    scale: bool = Field(
        default=False, description="takes another scale than E ** -0.5 (softmax), 1 (recurrence)"
    )


class SoftmaxPromises(HeadPromises):
    """What softmax variants may claim."""

    cross: bool = Field(default=False, description="query and key lengths may differ (L != S)")
    bias: bool = Field(default=False, description="adds a float tensor to the logits")
    softcap: bool = Field(default=False, description="caps the logits by tanh")
    sinks: bool = Field(default=False, description="one extra logit per head in the denominator")
    weights: bool = Field(
        default=False, description="the layer returns its weights on request (need_weights=True)"
    )


class RecurrencePromises(HeadPromises):
    """What recurrences may claim."""

    decay: tuple[Decay, ...] = Field(default=(), description="forms of log_decay that are taken")
    beta: bool = Field(default=False, description="takes beta, the strength of the delta rule")


class FeedforwardPromises(CommonPromises):
    """What mixtures of experts may claim."""

    capacity: bool = Field(default=False, description="can drop tokens over a capacity, on request")


class Promises(SoftmaxPromises, RecurrencePromises, FeedforwardPromises):
    """The claims of one variant, or of one implementation of it: the common ones and its family's.

    A mixer may make any of them. Of the others, `beyond` finds what belongs to another family.
    """

    def beyond(self, part: type[CommonPromises]) -> tuple[str, ...]:
        """Return the promises made here that a family's part does not have."""
        return tuple(
            name
            for name, field in type(self).model_fields.items()
            if name not in part.model_fields and getattr(self, name) != field.default
        )
