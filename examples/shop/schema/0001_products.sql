CREATE TABLE products (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  cents INTEGER NOT NULL,
  stock INTEGER NOT NULL CHECK (stock >= 0)
);
INSERT INTO products (name, cents, stock) VALUES ('Tea', 450, 20), ('Bread', 320, 8), ('Honey', 790, 3);
