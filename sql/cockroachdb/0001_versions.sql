-- What is written again and again has few old versions: every update leaves one, and a scan reads them all.
ALTER TABLE node_presence CONFIGURE ZONE USING gc.ttlseconds = 600;

ALTER TABLE leases CONFIGURE ZONE USING gc.ttlseconds = 600;

ALTER TABLE epochs CONFIGURE ZONE USING gc.ttlseconds = 600;

ALTER TABLE generations CONFIGURE ZONE USING gc.ttlseconds = 600;
