"""An order service on QPay: it makes invoices, takes callbacks, and has a page on which customers pay.

``settings`` reads the environment, ``orders`` keeps what was ordered, ``checkout`` decides what QPay is asked, ``app``
speaks HTTP, ``page.html`` is what customers see. ``python -m order_service`` runs it.
"""
