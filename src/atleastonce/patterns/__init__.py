"""The messaging patterns, one file each, above the contract and the engine and below the service. None knows a
broker."""
