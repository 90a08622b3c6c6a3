"""Tests of the models; skipped, with the reason, where transformers is absent."""

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install 'hwsearch[hf]'")
