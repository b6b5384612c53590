"""An engine that behaves as vLLM or SGLang do, over real HTTP, without a model."""
