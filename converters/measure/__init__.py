"""What a candidate takes: latency, peak memory, and an estimate where nothing can be measured."""
