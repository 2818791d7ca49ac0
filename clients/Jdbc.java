import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;

/** pgjdbc through the pooler: named statements from the fifth execution on, batches, cursors by fetch size. */
public class Jdbc {
    static int checks;

    static void check(String what, Object got, Object want) {
        checks++;
        if (!got.equals(want)) {
            System.err.println("pgjdbc: " + what + ": got " + got + ", want " + want);
            System.exit(1);
        }
    }

    static Connection connect() throws SQLException {
        Properties p = new Properties();
        p.setProperty("user", System.getenv("PGUSER"));
        p.setProperty("password", System.getenv("PGPASSWORD"));
        p.setProperty("prepareThreshold", "1");
        return DriverManager.getConnection(
            "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE"), p);
    }

    static String value(Connection c, String sql) throws SQLException {
        try (Statement s = c.createStatement(); ResultSet r = s.executeQuery(sql)) {
            r.next();
            return r.getString(1);
        }
    }

    public static void main(String[] args) throws SQLException {
        try (Connection one = connect(); Connection two = connect();
             PreparedStatement first = one.prepareStatement("select ? * 2"); PreparedStatement second = two.prepareStatement("select ? * 2")) {
            for (int n = 0; n < 50; n++) {
                for (PreparedStatement s : new PreparedStatement[] {first, second}) {
                    s.setInt(1, n);
                    try (ResultSet r = s.executeQuery()) {
                        r.next();
                        check("prepared", r.getInt(1), 2 * n);
                    }
                }
            }
            value(one, "select set_config('a.b', 'c', true)");
            try (Statement s = one.createStatement()) {
                s.execute("set work_mem = '7MB'");
                s.execute("drop table if exists jdbc");
                s.execute("create table jdbc (id int primary key, text text)");
            }
            for (int n = 0; n < 10; n++) {
                check("set", value(one, "show work_mem"), "7MB");
                check("set of nobody else", value(two, "show work_mem").equals("7MB"), false);
            }
            one.setAutoCommit(false);
            one.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            check("isolation", value(one, "show transaction_isolation"), "serializable");
            try (PreparedStatement insert = one.prepareStatement("insert into jdbc values (?, ?)")) {
                for (int n = 0; n < 500; n++) {
                    insert.setInt(1, n);
                    insert.setString(2, "row " + n);
                    insert.addBatch();
                }
                check("batch", insert.executeBatch().length, 500);
                one.commit();
                insert.setInt(1, 1000);
                insert.setString(2, "taken back");
                insert.executeUpdate();
                try {
                    insert.setInt(1, 1);
                    insert.executeUpdate();
                    check("duplicate key", "accepted", "refused");
                } catch (SQLException e) {
                    check("duplicate key", e.getSQLState(), "23505");
                }
                one.rollback();
            }
            check("transactions", value(two, "select count(*) from jdbc"), "500");
            try (PreparedStatement walk = one.prepareStatement("select generate_series(1, 5000)")) {
                walk.setFetchSize(100);
                long sum = 0;
                try (ResultSet r = walk.executeQuery()) {
                    while (r.next()) {
                        sum += r.getInt(1);
                    }
                }
                check("cursor", sum, 5000L * 5001 / 2);
            }
            one.commit();
            System.out.println("pgjdbc " + one.getMetaData().getDriverVersion() + ": " + checks + " checks");
        }
    }
}
