"""The soak: random lives of VMs under random commands, compared after each step with a model of what was written.

    make soak SEED=7 STEPS=500

A life makes one or two new VMs and does some dozens of steps to them. The model (``model``) knows every block of every
disk from the writes that the soak made itself, and the state files as they lay on the host; vmkeep is never asked what
is right. After each step ``invariants`` looks whether the host, the guest and the points are what the model says.
"""
