"""Tools in chats: offered to the model, called by it, and their results told to it.

`definitions` reads what a client offers, `formats` knows how a family of models writes calls,
`history` prepares messages for a template, `parser` finds calls in text that arrives in pieces, and
`grammar` holds answers to calls where the client insists.
"""
