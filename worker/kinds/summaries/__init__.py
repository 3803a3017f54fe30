"""How documents are summarized: read, cut, mapped, reduced, asked again, put together.

documents   bytes → text, whatever they are; `extract` in a process of its own where they may be hostile
intake      which documents there are, and one of them, read
chunks      text → parts that one call can read; summaries → groups that one call can reduce
prompts     what a call says
form        what users send
progress    what each document has so far, from the children that ended
lines       the files of a provider batch
rounds      what to make next
results     the outputs
"""
