"""The live page: who may look (guard), the routes (app), the page itself (static) and its chart library (vendor)."""
