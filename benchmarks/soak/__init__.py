"""A server under load for a while, with clients that leave: does anything grow or go lost?"""
