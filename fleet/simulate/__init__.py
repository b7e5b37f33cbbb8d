"""Virtual devices that speak the real protocol, for users to size their set-up. It knows no server and no tables."""
