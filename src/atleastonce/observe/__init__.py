"""What a service shows to the systems that watch it; each module needs its extra."""
