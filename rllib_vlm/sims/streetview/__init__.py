"""Street navigation after V-IRL: routes through panoramas, with an oracle that knows the way."""
