"""The session above paths: numbering, priorities, streams, signing."""
