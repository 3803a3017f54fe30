"""What operators use: the command line, doctor, audit, the stack on one machine, and the sandbox."""

import gc

# Imports make 200,000 objects, which stay. By Python's own threshold the collector looks through them again and
# again while they are made, which is a sixth of the time that a command takes to start.
gc.set_threshold(50_000, 20, 50)
