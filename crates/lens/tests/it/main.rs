//! One program for all these tests, because each one more is linked and stored again with everything that Orlop is made of.

mod conditions;
mod read;
