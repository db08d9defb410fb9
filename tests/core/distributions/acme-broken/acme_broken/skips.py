"""A test module that was given as a plugin by mistake."""

import pytest

pytest.skip("acme needs a GPU", allow_module_level=True)
