"""How documents are summarized: read, cut, mapped, reduced, asked again, put together.

form        what users send
documents   bytes → text, whatever they are; by `kinds/extract` in a process of its own where they may be hostile
intake      which documents there are, and one of them, read
chunks      text → parts that one call can read; answers → groups that one call can join
prompts     what a call says
modes       which way the calls go, and why
lines       the files of a provider batch
trees       what each document has so far, from the children that ended
endings     whether that is a summary
portion     what one step makes; `growth` adds to it what one tree needs next
rounds      what the job makes next
results     its outputs
"""
