"""The commands of this package: flags in, one call, tables and JSON out."""
