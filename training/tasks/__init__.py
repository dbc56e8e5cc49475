"""What the embedded model is taught: small talk, facts in the prompt, and tool loops."""
