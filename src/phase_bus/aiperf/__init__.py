"""AIPerf on the bus: the plugin inside it, and the attachment from outside.

Nothing is imported here: AIPerf imports this package to find ``plugins.yaml`` even if the plugin is off.
"""
