"""The logic of distier, once: generators that yield effects. No I/O, no clock, no chance in here.

A plan may be stopped after any effect (a process dies at any line); what it leaves behind is described where it
matters, and tests stop every plan after every effect.
"""
