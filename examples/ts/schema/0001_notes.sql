CREATE TABLE notes (id INTEGER PRIMARY KEY, author TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX notes_of_author ON notes (author);
