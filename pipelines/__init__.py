"""Pipelines: they chain components, give them resources, caching and retries, and branch on the verdict."""
