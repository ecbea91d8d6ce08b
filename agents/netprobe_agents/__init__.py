"""What is deployed on hosts and in guests: the guest agent (standard library and trio only)."""
