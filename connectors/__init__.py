"""Sources that ship: Kafka, a folder, and a synthetic world to try them on."""
