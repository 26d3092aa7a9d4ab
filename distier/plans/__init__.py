"""The logic of distier, written once: generators that yield effects. Plans do no I/O and read neither a clock nor chance.

A process may die at any line, so a plan may stop after any effect. Where that leaves something behind, the plan says so. The
tests stop every plan after every effect.
"""
