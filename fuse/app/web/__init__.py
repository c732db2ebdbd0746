"""A page in the browser: python app.py"""
