"""Models behind one small protocol: the demo models, and providers through pydantic-ai."""
