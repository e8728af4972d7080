-- From format 3 to format 4: edges that are there at times. What labels state already is written by the program.

CREATE TABLE condition (
  namespace TEXT NOT NULL,
  from_kind TEXT NOT NULL,
  from_name TEXT NOT NULL,
  to_kind   TEXT NOT NULL,
  to_name   TEXT NOT NULL,
  newer     INTEGER NOT NULL,
  age       INTEGER NOT NULL,
  PRIMARY KEY (namespace, from_kind, from_name, to_kind, to_name, newer, age)
) WITHOUT ROWID;
CREATE INDEX condition_to ON condition (namespace, to_kind, to_name);
CREATE INDEX condition_age ON condition (age);

CREATE TABLE used (
  namespace TEXT NOT NULL,
  kind      TEXT NOT NULL,
  name      TEXT NOT NULL,
  at        INTEGER NOT NULL,
  PRIMARY KEY (namespace, kind, name, at)
) WITHOUT ROWID;
CREATE INDEX used_at ON used (at);
