"""What a variant or an implementation claims, typed.

A promise is two-sided: what is promised is tested by the conformance suite, what is not promised
must be refused by name. `attnkit.problem` matches promises against a call.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Family = Literal["softmax", "recurrence", "feedforward", "mixer"]
Relation = Literal["exact", "approximate", "different"]
MaskPart = Literal["window", "padding", "documents", "prefix", "dense", "blocks", "union"]
Decay = Literal["none", "head", "channel"]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]
Device = Literal["cpu", "cuda"]

ALL_DTYPES: tuple[Dtype, ...] = ("float64", "float32", "bfloat16", "float16")
ALL_MASK_PARTS: tuple[MaskPart, ...] = (
    "window",
    "padding",
    "documents",
    "prefix",
    "dense",
    "blocks",
    "union",
)


class Promises(BaseModel):
    """The claims of one variant, or of one implementation of it.

    Every field defaults to the smallest claim, so that a promise is always written out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # who may look at what
    causal: bool = Field(False, description="can hide later keys, lower-right aligned")
    bidirectional: bool = Field(False, description="can leave later keys visible")
    cross: bool = Field(False, description="query and key lengths may differ (L != S)")
    masks: tuple[MaskPart, ...] = Field((), description="mask parts that are honoured")
    needs: tuple[MaskPart, ...] = Field((), description="mask parts without which it refuses")
    # heads
    heads: Literal["one", "many"] = Field("many", description="how many query heads")
    gqa: bool = Field(False, description="fewer key/value heads (softmax), groups (recurrence)")
    value_width: bool = Field(False, description="value width Ev may differ from E")
    # arithmetic of a softmax variant
    bias: bool = Field(False, description="adds a float tensor to the logits")
    scale: bool = Field(False, description="takes another scale than E ** -0.5")
    softcap: bool = Field(False, description="caps the logits by tanh")
    sinks: bool = Field(False, description="one extra logit per head in the denominator")
    dropout: bool = Field(False, description="drops probabilities in training")
    weights: bool = Field(False, description="the layer returns its weights on request")
    # arithmetic of a recurrence
    decay: tuple[Decay, ...] = Field((), description="forms of log_decay that are taken")
    beta: bool = Field(False, description="takes beta, the strength of the delta rule")
    # mixture of experts
    capacity: bool = Field(False, description="can drop tokens over a capacity, on request")
    # time
    state: bool = Field(False, description="any split into chunks and steps equals the whole")
    reorder: bool = Field(False, description="a state can be reordered over the batch")
    truncate: bool = Field(False, description="a state can be cut back to fewer tokens")
    # numerics
    gradients: bool = Field(False, description="every floating input gets its gradient")
    dtypes: tuple[Dtype, ...] = Field((), description="dtypes of the inputs")
    devices: tuple[Device, ...] = Field((), description="device types")
    deterministic: bool = Field(False, description="the same call gives the same bits")
    compile: bool = Field(False, description="traces under torch.compile(fullgraph=True)")
    stops_nan: bool = Field(False, description="NaN and inf at masked places stay there")
    memory: Literal["L", "L*S"] = Field("L*S", description="growth of extra memory")
    time: Literal["L", "L*w", "L*S"] = Field("L*S", description="growth of run time")
