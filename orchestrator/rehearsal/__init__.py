"""A loopback AWS that really runs training jobs: an endpoint on 127.0.0.1, with no account, no network, no Docker."""
