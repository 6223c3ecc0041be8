"""Site or folder -> records -> captions -> shards. Refuses to train anything."""
