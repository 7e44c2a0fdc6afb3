"""An order service on QPay: it makes invoices, takes callbacks, and has a page on which customers pay.

``settings`` reads the environment. ``orders`` stores the orders. ``checkout`` decides about requests to QPay. ``app``
handles HTTP. ``page.html`` is the customers' page. ``python -m order_service`` runs the service.
"""
