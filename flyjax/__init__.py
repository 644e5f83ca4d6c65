"""flyjax: recover a fly's visual circuit from its activity, and search for the settings that make it work."""
