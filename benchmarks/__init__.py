"""How fast it is: one step taken apart, generation beside transformers, clients over HTTP.

Everything printed was measured in the run that prints it, together with the machine it ran on.
"""
