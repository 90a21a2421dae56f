"""Faults below Python: a library between Python and the C library, in which calls for files fail.

`library` compiles it and says which calls are struck, `drawing` draws trials from a seed, `trial` does one: a change of
`changes.CHANGES` in a copy of its folder while calls fail, and `judge` compares what is left with what was promised.
`python -m faults_below` runs them; it starts itself again with the library preloaded.
"""
