"""Every error attnkit raises on purpose, one class per reaction a caller may have.

    AttnkitError
    ├── ShapeError (ValueError)            a size or rank is wrong
    ├── DtypeError (TypeError)             a dtype is wrong
    ├── DeviceError (ValueError)           tensors lie on different devices
    ├── ArgumentError (ValueError)         any other argument is wrong
    │   ├── MaskError                      a mask does not fit the tensors, or is no mask
    │   └── ConfigError                    a configuration field is unknown, missing or wrong
    ├── UnsupportedError (NotImplementedError)   nobody asked can honour this request
    ├── ImplementationError (RuntimeError)  an implementation returned what its door cannot pass on
    ├── MissingPackageError (ImportError)  a package of one of attnkit's extras is not installed
    ├── StateError (ValueError)            a state does not fit, or cannot be cut there
    ├── RegistryError (LookupError)
    │   ├── UnknownVariantError            no variant has this name
    │   ├── DuplicateVariantError          several distributions offer this name
    │   └── BrokenPluginError (ImportError)      the plugin behind the name does not load
    └── SwapError (RuntimeError)           a model was left as it was
        ├── SwapRefusedError (UnsupportedError)   sites cannot take what the plan gives them
        ├── HostError                      an adapter does not keep the contract of hosts
        └── VerificationError              a swap ran but did not compute the same

Each message says what was wrong, what came and what is allowed. `BrokenImplementationWarning` says
once of an implementation that it was passed over because it fails.
"""


class AttnkitError(Exception):
    """Base of all errors raised on purpose; catch this to catch them all."""


class ShapeError(AttnkitError, ValueError):
    """A rank or size is wrong; the message prints the shapes."""


class DtypeError(AttnkitError, TypeError):
    """A dtype is wrong; the message prints it and what is allowed."""


class DeviceError(AttnkitError, ValueError):
    """Tensors of one call lie on different devices."""


class ArgumentError(AttnkitError, ValueError):
    """An argument has a value that no variant accepts."""


class MaskError(ArgumentError):
    """A mask does not fit the tensors it was given with, or is not a mask."""


class ConfigError(ArgumentError):
    """A configuration field is unknown, missing or out of range."""


class UnsupportedError(AttnkitError, NotImplementedError):
    """A variant or implementation cannot honour the request; every reason is in the message."""


class ImplementationError(AttnkitError, RuntimeError):
    """An implementation returned something of another kind, shape, dtype or device than asked."""


class MissingPackageError(AttnkitError, ImportError):
    """A package of one of attnkit's extras is not installed; the message has the command."""


class StateError(AttnkitError, ValueError):
    """A state does not fit the call, or cannot be cut where asked."""


class RegistryError(AttnkitError, LookupError):
    """A name cannot be resolved to exactly one working variant."""


class UnknownVariantError(RegistryError):
    """No installed plugin offers a variant of this name."""


class DuplicateVariantError(RegistryError):
    """Several owners offer a variant of this name."""


class BrokenPluginError(RegistryError, ImportError):
    """The plugin that offers this name does not load; the cause is chained."""


class BrokenImplementationWarning(UserWarning):
    """An implementation that promises a call fails; another one runs in its place."""


class SwapError(AttnkitError, RuntimeError):
    """A swap was refused; the model is as it was."""


class SwapRefusedError(SwapError, UnsupportedError):
    """Some sites cannot take their variant; all of them are in the message, with all reasons."""


class HostError(SwapError):
    """A library's adapter answered what its contract does not allow; the message names it."""


class VerificationError(SwapError):
    """A swap was tried, did not compute what the model computed, and was undone."""
