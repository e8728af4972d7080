-- From format 4 to format 5: activations. Edges to them that labels state already are written by the program.

CREATE TABLE mount (
  namespace TEXT NOT NULL,
  name      TEXT NOT NULL,
  id        INTEGER NOT NULL UNIQUE,
  labels    TEXT NOT NULL,
  active    TEXT NOT NULL,
  system    TEXT NOT NULL,
  created   INTEGER NOT NULL,
  PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
