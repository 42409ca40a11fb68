"""Input pipelines side by side: each module is a process that ``input_pipeline.py`` starts in its own environment."""
