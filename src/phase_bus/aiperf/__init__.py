"""AIPerf on the bus: the plugin inside it, and the attachment from outside.

Nothing is imported here: AIPerf imports this package to find ``plugins.yaml`` even where the plugin is off.
"""
