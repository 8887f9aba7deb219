-- Both tables are written several times a second while somebody watches: their old versions go soon.
ALTER TABLE watches CONFIGURE ZONE USING gc.ttlseconds = 600;

ALTER TABLE watched_records CONFIGURE ZONE USING gc.ttlseconds = 600;
