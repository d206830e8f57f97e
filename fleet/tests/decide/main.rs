//! What the leader decides: told as stories, and as rules that hold whatever comes in.

mod health;
mod operators;
mod plane;
mod repair;
mod rules;
mod stories;
