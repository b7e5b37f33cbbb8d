"""Device-side rules of the wire, pure; the agent and the simulator both use them."""
