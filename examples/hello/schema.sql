CREATE TABLE greetings (language TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO greetings (language, text) VALUES
  ('en', 'Hello'), ('de', 'Hallo'), ('fr', 'Bonjour'), ('ja', 'こんにちは'), ('gd', 'Halò');
