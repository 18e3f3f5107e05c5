"""The command line: words to calls, and results to words.

In: the words that a user typed. Out: lines on a terminal and an exit code. Door: `commands.run_command`.
"""
