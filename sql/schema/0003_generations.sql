-- Apart from the row of epochs, which is held only from its change to COMMIT: a release or a move needs its generation
-- earlier, for what it writes and answers.
CREATE TABLE IF NOT EXISTS generations (
    id INT8 PRIMARY KEY CHECK (id = 1),
    generation INT8 NOT NULL
);

INSERT INTO generations (id, generation) SELECT 1, generation FROM epochs WHERE id = 1 ON CONFLICT (id) DO NOTHING;
